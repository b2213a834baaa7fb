"""The embedded demo: the scene in `scene/`, what it is made of in `stage/`."""
