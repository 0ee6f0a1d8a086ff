from .components import attention_map as attention_map
from .components import component_scatter as component_scatter
from .components import effect_strip as effect_strip
from .components import token_bars as token_bars
from .graphs import faithfulness_figure as faithfulness_figure
from .graphs import layered_graph as layered_graph
from .heatmaps import heat_map as heat_map
