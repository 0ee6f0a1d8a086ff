from .from_heads import head_glu_scores as head_glu_scores
from .from_heads import head_weights as head_weights
from .glu import glu_activations as glu_activations
from .glu import glu_vectors as glu_vectors
from .glu import opposed_neurons as opposed_neurons
from .glu import rank_glu as rank_glu
from .search import search_neurons as search_neurons
from .silencing import activation_delta as activation_delta
