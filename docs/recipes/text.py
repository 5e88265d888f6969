"""# A text

Models that read text are explained token by token and word by word; of several texts each has its page.
"""

from pathlib import Path

import fxlrp
from fxlrp.text.attribution import write_html

model = Path(fxlrp.__file__).parent / "examples" / "text"
texts = ["the plot is dull but the music was truly wonderful.", "we saw it yesterday. the film was not funny."]

answers = fxlrp.explain(model, texts, target=["positive", "negative"])
for a in answers:
    a.show()
    print({word: round(r, 2) for word, r in a.words})
write_html("out/recipes/text.html", answers)
