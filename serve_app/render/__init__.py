"""What runs behind the router: text encoding, denoising and decoding, video encoding; see `worker`."""
