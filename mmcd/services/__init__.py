"""What a page or a command may ask for: a frozen request in, a frozen result out, progress by callback."""
