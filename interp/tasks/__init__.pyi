from .arithmetic import score_answer as score_answer
from .countdown import make_countdown as make_countdown
from .own_prompts import pair as pair
from .own_prompts import pairs as pairs
from .registry import TASKS as TASKS
from .registry import load_task as load_task
from .saved import save_task as save_task
from .taboo import make_taboo as make_taboo
