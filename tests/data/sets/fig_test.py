"""Reading specs as text: nesting, several names, and what is no plain literal."""

from peftjax.data.sets.fig import described

SPEC = """
var o=[{name:"shared",description:"Not attached to a command"}],r={name:"tool",description:"A tool",
subcommands:[{name:["rm","remove"],description:"Remove it",options:[{name:["-f","--force"],description:'Do not "ask"',args:{name:"x"}},
{name:"-q",description:`quiet ${level}`,generators:[{script:function(a){return a.map(e=>({name:e,description:"made"}))}}]}]},
{name:"list",description:"Lists \\u2026"},{description:"Comes first",name:"late"}],options:[...o,{name:"--all",description:"All of them"}]};
"""


def test_commands_with_their_path():
    found = [(place, " ".join(path), description) for place, path, description in described(SPEC)]
    assert found == [
        ("", "shared", "Not attached to a command"),
        ("options", "tool remove --force", 'Do not "ask"'),
        ("subcommands", "tool remove", "Remove it"),
        ("subcommands", "tool late", "Comes first"),
        ("options", "tool --all", "All of them"),
        ("", "tool", "A tool"),
    ]


def test_brackets_that_do_not_match_end_the_reading():
    assert list(described('{name:"a",description:"b"},)({name:"c",description:"d"}')) == [("", ["a"], "b")]
