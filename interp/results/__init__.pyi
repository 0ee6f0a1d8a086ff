from .direction import Direction as Direction
from .direction import load_directions as load_directions
from .direction import orthogonalise_direction as orthogonalise_direction
from .direction import save_directions as save_directions
from .scores import Scores as Scores
