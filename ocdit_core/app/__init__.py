"""`ocdit app`: a local web page that segments images, for people without a robot or a command line."""
