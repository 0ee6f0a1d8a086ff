from .by_name import kept_study as kept_study
from .by_name import study_table as study_table
from .cost import StudyCost as StudyCost
from .cost import study_cost as study_cost
from .refusal.study import study_refusal as study_refusal
from .reuse.study import study_reuse as study_reuse
from .verification.outcomes import classify_outcome as classify_outcome
from .verification.study import study_verification as study_verification
