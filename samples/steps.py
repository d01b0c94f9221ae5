"""How a picture comes out of the noise: what each step of each stage makes of it, side by side on one sheet."""

from pathlib import Path

import mmgen
from mmgen.images import grid

pipe = mmgen.load("storybook")
pictures, captions = [], []
for step in pipe.stream("a penguin in the snow at night", seeds=[1], size=256):
    pictures += step.preview()
    captions += [f"{step.stage} {step.index}/{step.total}"] * len(step.preview())
Path("mmgen-out").mkdir(exist_ok=True)
grid([picture.resize((256, 256)) for picture in pictures], 6, captions).save("mmgen-out/steps.png")
print("mmgen-out/steps.png")
