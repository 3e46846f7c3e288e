"""The chart's Grafana dashboards: `fleet`, `one_training`, `one_service` and `reconciling`; `grafana` makes them JSON.

`python -m arctic_cli.generated` writes them into the chart.
"""

from collections.abc import Mapping

from arctic_cli.dashboards.fleet import FLEET
from arctic_cli.dashboards.grafana import Dashboard
from arctic_cli.dashboards.one_service import ONE_SERVICE
from arctic_cli.dashboards.one_training import ONE_TRAINING
from arctic_cli.dashboards.reconciling import RECONCILING

DASHBOARDS: Mapping[str, Dashboard] = {each.uid: each for each in (FLEET, ONE_TRAINING, ONE_SERVICE, RECONCILING)}
"""By their uid, which is the name of their file too."""
