"""The family `wan`: Wan2.1's and Wan2.2's text-to-video checkpoints in diffusers' layout."""
