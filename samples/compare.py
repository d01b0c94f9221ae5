"""One setting, one seed: what guidance does to a picture, from none to too much, on one sheet."""

from pathlib import Path

import mmgen
from mmgen.images import grid

SCALES = (1.0, 2.0, 4.0, 8.0)

pipe = mmgen.load("storybook")
pictures = []
for scale in SCALES:
    stages = {"decoder": mmgen.StageSettings(guidance_scale=scale)}
    pictures += pipe("a green apple on the grass", seeds=[1], size=256, stages=stages)
Path("mmgen-out").mkdir(exist_ok=True)
grid(pictures, 4, [f"guidance {scale:g}" for scale in SCALES]).save("mmgen-out/guidance.png")
print("mmgen-out/guidance.png")
