from .architecture import Decoder as Decoder
from .stopping import stoppable as stoppable
