from .findings import ScanEffect as ScanEffect
from .findings import Scan as Scan
from .findings import scan as scan
from .logit_parts import LogitParts as LogitParts
from .logit_parts import direct_attribution as direct_attribution
from .one_prompt import Look as Look
from .one_prompt import look as look
from .prompt_set import head_samples as head_samples
