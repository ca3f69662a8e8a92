"""Draws `demo.png`, the picture in the README: prompts and frames of what `native/demo` makes of them.

    python docs/demo.py

Same seeds, same picture; run it again when the weights change.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from serve_app.core import Frames
from serve_app.model.families import load_family
from serve_app.model.training.judge.questions import Question
from serve_app.model.training.world.world import Scene
from serve_app.render.evaluation import Evaluation

PROMPTS = {
    "a large red heart grows on a white background": Scene("heart", "red", "white", "large", "grow"),
    "a small yellow star moves to the right in front of a navy wall": Scene("star", "yellow", "navy", "small", "right"),
    "a big purple cross spinning on a black background": Scene("cross", "purple", "black", "large", "rotate"),
    "on sand, a tiny blue square bounces": Scene("square", "blue", "sand", "small", "bounce"),
    "sky background: a huge green triangle floats up": Scene("triangle", "green", "sky", "large", "up"),
}
FRAMES = range(0, 16, 2)


def draw(videos: dict[str, Frames], path: Path) -> None:
    """Write one row of frames per prompt."""
    figure, rows = plt.subplots(len(videos), len(FRAMES), figsize=(8, 1.22 * len(videos)), squeeze=False)
    for row, (prompt, frames) in zip(rows, videos.items(), strict=True):
        row[0].set_title(prompt, fontsize=9, loc="left")
        for axes, i in zip(row, FRAMES, strict=True):
            axes.imshow(frames[i])
            axes.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, top=0.965, bottom=0.005, wspace=0.04, hspace=0.22)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    asked = [Question(prompt, scene, "", held_out_template=False, seed=42) for prompt, scene in PROMPTS.items()]
    answers = Evaluation(load_family("native/demo")).ask(asked, 16)
    draw({answer.question.prompt: answer.frames for answer in answers}, Path(__file__).with_suffix(".png"))
