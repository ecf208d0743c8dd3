from html.parser import HTMLParser

from peftjax.study.blocks import Code, Heading, Items, Picture, Table, Text, markdown, page

DOCUMENT = [
    Heading("A <study>", 1), Text("one **bold** & `x < y`, 2 ** 3"), Items(["first", "**second**"]), Code("a < b"),
    Table(["name", "value"], [["a|b", "1.5"], ["c", "-2"]]), Picture("pareto", "Quality & cost", b"png"),
]


def test_markdown():
    text = markdown(DOCUMENT)
    assert "# A <study>" in text and "- first\n- **second**" in text and "```\na < b\n```" in text
    assert "| a\\|b | 1.5 |" in text and "![Quality & cost](figures/pareto.png)" in text


def test_the_page_is_whole_and_escaped():
    text = page(DOCUMENT, "A <study>")
    assert "<h1>A &lt;study&gt;</h1>" in text and "<b>bold</b> &amp; <code>x &lt; y</code>, 2 ** 3" in text
    assert "<pre>a &lt; b</pre>" in text and 'src="data:image/png;base64,cG5n"' in text
    assert '<td class=number>1.5</td>' in text and "<td>a|b</td>" in text

    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "img"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    parser = Balance()
    parser.feed(text)
    assert parser.open == []
