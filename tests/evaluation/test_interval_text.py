import numpy as np
import pytest

from medseq_tf.evaluation.metrics.interval_text import interval, number, with_interval


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (number(0.91249), "0.912"),
        (number(0.5, "+"), "+0.500"),
        (number(-0.5, "+", decimals=1), "-0.5"),
        (number(None), "-"),
        (number(np.nan, missing="none"), "none"),
        (interval(0.8, 1.0), "0.800 to 1.000"),
        (interval(-0.1, 0.2, "+"), "-0.100 to +0.200"),
        (interval(0.3, np.inf), "0.300 to no bound"),
        (interval(-np.inf, 0.3), "no bound to 0.300"),
        (interval(np.nan, np.nan, missing="no interval"), "no interval"),
        (interval(None, None), "-"),
        (with_interval(0.9, 0.8, 1.0, decimals=2), "0.90 (0.80 to 1.00)"),
        (with_interval(0.9, np.nan, np.nan), "0.900"),
        (with_interval(None, None, None), "-"),
    ],
)
def test_a_figure_and_its_interval_in_words(words, expected):
    assert words == expected
