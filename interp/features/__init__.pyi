from .activations import feature_activations as feature_activations
from .activations import view_feature as view_feature
from .attribution import feature_attribution as feature_attribution
from .dictionary import Dictionary as Dictionary
from .layouts import load_dictionary as load_dictionary
from .patching import feature_patching as feature_patching
from .prompt_graph import attribution_graph as attribution_graph
from .quality import dictionary_card as dictionary_card
