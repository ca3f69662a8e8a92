"""Whether clips show what their prompts ask for; see `judge`."""
