"""mmcd finds what a disaster changed between an optical image before and a radar image after."""

__version__ = "0.1.0"
