from .activation import activation_patching as activation_patching
from .attribution import atp_star as atp_star
from .attribution import attribution_patching as attribution_patching
from .calibration import calibrate as calibrate
from .joint import joint_patching as joint_patching
from .path import path_patching as path_patching
from .unfinished import unfinished_sweep as unfinished_sweep
