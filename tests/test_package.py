"""What `import proxygml` offers."""

import re
from pathlib import Path

import proxygml
from proxygml import errors

ROOT = Path(__file__).parents[1]
API_PAGE = ROOT / "docs" / "api.md"


def test_the_api_page_lists_what_the_package_exports() -> None:
    listed = re.findall(r"^::: proxygml\.(\w+)$", API_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(proxygml.__all__)


def test_every_exported_name_can_be_imported_and_says_what_it_is() -> None:
    for name in proxygml.__all__:
        assert getattr(proxygml, name).__doc__, name


def test_a_function_is_not_hidden_by_a_module_of_its_name() -> None:
    """`proxygml.compare` stays a function after comparison/compare.py has been imported; so do the others."""
    import proxygml.auditing.audit
    import proxygml.comparison.compare
    import proxygml.gallery.clusters.cluster
    import proxygml.training.train

    for name in (
        "prepare",
        "train",
        "evaluate",
        "evaluate_run",
        "compare",
        "index",
        "search",
        "embed",
        "cluster",
        "audit",
    ):
        assert callable(getattr(proxygml, name)), name


def test_every_error_is_a_user_error() -> None:
    kinds = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert len(kinds) > 5
    # That another process has failed is no mistake of a user; that process says whose it is.
    assert all(issubclass(kind, errors.UserError) for kind in kinds if kind is not errors.OtherProcessError)


def test_the_version_is_that_of_the_changelog_and_of_the_citation() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert versions[0] == proxygml.__version__
    assert f"\nversion: {proxygml.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
