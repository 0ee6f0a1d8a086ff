from .compression import compress as compress
from .merging import Merge as Merge
from .merging import merge as merge
from .reversal import Recoverability as Recoverability
from .reversal import recoverability as recoverability
from .reversal import taken_back as taken_back
from .after_change import Survival as Survival
from .after_change import survival as survival
