"""DICOM files in any tree, with any names, become studies: one an examination.

`index` lists the studies of a folder; `elements`, `header` and `frame` say what a file holds,
`series` which files are a study's slices and in what order, `identity` which row of the labels is
whose, `pixels` and `resampling` what a slice's values are, and `study` puts them together.
"""
