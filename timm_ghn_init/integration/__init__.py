"""A source string goes in, an initialised timm model comes out: registration, hooks into timm, enabling, the runner."""
