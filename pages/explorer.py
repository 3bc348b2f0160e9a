"""Explorer: look through the pictures and patches of data sets and scenes, and flag what is unusable."""

from mmcd.studio.ease import PATCH_KEYS, PICTURE_KEYS, keyboard, titled_view
from mmcd.studio.explorer_images import image_explorer
from mmcd.studio.explorer_patches import patch_explorer
from mmcd.studio.explorer_source import choose_collection

VIEWS = {"images": image_explorer, "patches": patch_explorer}
NAMES = {"images": "Images", "patches": "Patches"}

view = titled_view("Look through the data", NAMES, "view")
VIEWS[view](choose_collection())
keyboard(PATCH_KEYS if view == "patches" else PICTURE_KEYS)
