"""YAML for recipes: as plain YAML, but a key may come only once."""

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that comes twice; plain YAML would silently keep the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is a list or a mapping", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} comes twice: give each key once", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node
