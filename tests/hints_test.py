"""A hint names the nearest, and is silent where nothing is near."""

from peftjax.hints import did_you_mean


def test_names_the_nearest():
    assert did_you_mean("rnk", {"rank": 1, "alpha": 2}) == " (did you mean 'rank'?)"


def test_is_silent_where_nothing_is_near():
    assert did_you_mean("zzz", ["rank", "alpha"]) == "" == did_you_mean("rank", [])
