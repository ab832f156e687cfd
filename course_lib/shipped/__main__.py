"""``python -m course_lib.shipped`` writes the checksums anew, after a model or a card changed."""

from course_lib.shipped import write_checksums

write_checksums()
