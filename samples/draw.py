"""Four pictures of one prompt, each saved with the settings that made it, and all on one sheet."""

import mmgen

pipe = mmgen.load("storybook")
result = pipe("a red boat on the sea at sunset", seeds=[1, 2, 3, 4], size=256)
for path in result.save("mmgen-out"):
    print(path)
result.grid(columns=2).save("mmgen-out/sheet.png")
for record in result.records:
    print(f"{record.stage:14} {record.steps:3} steps {record.seconds:6.2f} s")
