"""A picture file is its own recipe: read it, draw the same again, then the same with one thing changed."""

from dataclasses import replace

import mmgen
from mmgen.images import read_metadata

pipe = mmgen.load("storybook")
first = pipe("a yellow butterfly above a tulip", seeds=[1], size=64)
(path,) = first.save("mmgen-out")

request = read_metadata(path)["request"]
same = pipe.run(request)
print("the same bytes again:", same[0].tobytes() == first[0].tobytes())

changed = pipe.run(replace(request, prompts=("a purple butterfly above a tulip",)))
print(changed.save("mmgen-out")[0])
