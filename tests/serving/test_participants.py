"""The covariates of studies that are predicted, by the rows of a table."""

from __future__ import annotations

import pytest
from small_models import COVARIATES, description_of

from medseq_tf.errors import InputError
from medseq_tf.readers.study import StudySource
from medseq_tf.serving.participants import read_participants

DESCRIPTION = description_of("uint8", covariates=COVARIATES)


class Named(StudySource):
    def read(self):
        raise AssertionError("nothing has to be read")


def studies(*sources, patient=None):
    return [Named(source, patient or source, {}, None) for source in sources]


def read(tmp_path, text, found, description=DESCRIPTION):
    file = tmp_path / "participants.csv"
    file.write_text(text)
    return read_participants(file, description, found)


ROWS = "patient_id,sex,age,more\n007,F,63,x\n8,,51,y\n"


@pytest.mark.parametrize(
    "sources",
    [
        ("scans/007", "scans/8"),
        ("007", "8"),
        ("a/b/007.nii.gz", "a/c/8.mha"),
    ],
)
def test_rows_are_of_the_studies_of_their_names(tmp_path, sources):
    found = read(tmp_path, ROWS, studies(*sources, "scans/9"))
    assert found == {sources[0]: {"age": "63", "sex": "F"}, sources[1]: {"age": "51", "sex": ""}}


def test_a_path_is_a_key_too(tmp_path):
    text = "patient_id,sex,age\na/7,F,63\nb/7,M,51\n"
    found = read(tmp_path, text, studies("a/7", "b/7"))
    assert [found[key]["age"] for key in ("a/7", "b/7")] == ["63", "51"]


def test_a_patient_s_id_of_dicom_is_a_key_and_reaches_no_error(tmp_path):
    secret = studies("study-0123", patient="007")
    assert read(tmp_path, ROWS, secret) == {"study-0123": {"age": "63", "sex": "F"}}
    with pytest.raises(InputError, match="no row is of a study") as caught:
        read(tmp_path, ROWS, studies("study-0123", patient="secret"))
    assert "secret" not in str(caught.value)


WRONG = {
    "no such column": ("patient_id,age\n007,63\n", "has no column sex, which the model reads"),
    "no number": ("patient_id,sex,age\n007,F,secret\n", "line 2: covariate age is no number"),
    "no category": ("patient_id,sex,age\n007,secret,1\n", "line 2: covariate sex is none of F, M"),
    "two rows": ("patient_id,sex,age\n007,F,1\n007,M,1\n", "line 3: a row above has other values"),
    "nobody": ("patient_id,sex,age\n7,F,1\n", "no row is of a study that is predicted"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, case):
    text, words = WRONG[case]
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path, text, studies("scans/007"))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_name_of_two_studies_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a/007 and b/007 are both .* line 2 by their names"):
        read(tmp_path, ROWS, studies("a/007", "b/007"))


def test_a_model_without_covariates(tmp_path):
    with pytest.raises(InputError, match="reads no covariates"):
        read(tmp_path, ROWS, studies("scans/007"), description_of("uint8"))
