"""A report as one HTML file that holds everything it shows and may load nothing."""

import base64
import hashlib
from importlib.resources import files

import plotly.offline
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moetune.autotune.report.content import Report
from moetune.autotune.report.draw_plotly import plotly_json

_PACKAGE = "moetune.autotune.report"


def page_of(report: Report) -> str:
    """The file's text. Scripts run only if they are those of this moetune: their hashes stand in the page's policy."""
    plotly_js, script = str(plotly.offline.get_plotlyjs()), _beside("page.js")
    environment = Environment(
        loader=PackageLoader(_PACKAGE, "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        drawn={figure.key: plotly_json(figure) for figure in report.figures if not figure.empty},
        style=Markup(_beside("page.css")),  # noqa: S704 – moetune's own file
        plotly=Markup(plotly_js),  # noqa: S704 – plotly's own file
        script=Markup(script),  # noqa: S704 – moetune's own file
        script_hashes=" ".join(_hash(text) for text in (plotly_js, script)),
    )


def _beside(name: str) -> str:
    return (files(_PACKAGE) / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
