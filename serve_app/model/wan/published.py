"""Wan's published text-to-video models: under which name each is served, and where its checkpoint is.

This is data that no checkpoint has; importing it costs nothing, so that every server can name the models it knows.
"""

from __future__ import annotations

from typing import Literal

Dtype = Literal["float32", "bfloat16", "float16"]
"""What transformers and text encoder compute in."""

PUBLISHED = {
    "wan2.2-t2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.2-t2v-a14b": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    "wan2.1-t2v-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan2.1-t2v-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
}
"""The repository on the Hugging Face Hub of each model that has a name of its own."""
