# MuJoCo's compiled bindings carry no types; without this every use of them would be an error.
from typing import Any

def __getattr__(name: str) -> Any: ...
