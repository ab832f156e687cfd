"""``python -m course_lib.curation --pages 200000 --out FILE``: see ``report``."""

from course_lib.curation.report import main

if __name__ == "__main__":
    main()
