"""What a model predicts of a DICOM study, as DICOM objects for the archive that the study is in."""
