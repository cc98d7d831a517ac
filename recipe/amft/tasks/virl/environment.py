"""V-IRL navigation, in text or by views: walk the expert's path by saying the expert's action at each location."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

from recipe.amft.tasks.environment import Observation
from recipe.amft.tasks.rendering.grid import VIEW_SIZE
from recipe.amft.tasks.rendering.panorama import PanoramaPicture, panorama_folder
from recipe.amft.tasks.rendering.street import StreetPicture
from recipe.amft.tasks.virl import prompts
from recipe.amft.tasks.virl.city import CityOptions, make_city
from recipe.amft.tasks.virl.instructions import Mode, parse_landmark
from recipe.amft.tasks.virl.prompts import Modality, PromptStyle
from recipe.amft.tasks.virl.rail import Rail, build_rail
from recipe.amft.tasks.virl.routes import Route, parse_route, read_route_file
from recipe.amft.tasks.virl.trips import sample_routes
from recipe.amft.tasks.virl.verifier import ActionSpace, Verdict, recognized, verdict, verify

RESET_OPTIONS = ("route", "route_index", "location")
CHOICES = {
    "action_space": get_args(ActionSpace),
    "context": ("per_location", "concat"),
    "mode": get_args(Mode),
    "reward": ("success", "shaped", "per_step"),
    "prompt_style": get_args(PromptStyle),
    "modality": get_args(Modality),
}


@dataclass(kw_only=True)
class Navigation:
    """Ends when the expert's `stop()` is given at the destination, or is truncated as failed at a location.

    A right action moves to the next location and renews the attempts. In mode `paper` the `verify_iter`-th wrong answer
    at a location ends the episode and keeps its own verdict; in mode `upstream` one more answer is taken, is not read,
    gets -1 and ends it.
    """

    routes: str | None = None  # a route file; reset draws a route of it. None: routes of the synthetic city
    city: Mapping[str, Any] = field(default_factory=dict)  # of CityOptions, where options and `routes` give no route
    action_space: ActionSpace = "absolute"  # turn_direction(north) (in distribution) or (left) (`relative`: rule shift)
    context: str = "per_location"  # a fresh message with the history at each location; or `concat`: one growing chat
    verify_iter: int = 2  # attempts per location
    straight_points: int = 5  # candidates for forward() on a leg
    drop_rate: float = 0.5  # of those
    mode: Mode = "paper"
    reward: str = "success"  # 1.0 at the end of a solved episode; `shaped`: the table; `per_step`: share of locations
    prompt_style: PromptStyle = "paper"
    modality: Modality = "text"  # or `image`: the current observation is a picture of four views
    view_size: int = VIEW_SIZE  # pixels per side of a view
    panoramas: str | None = None  # a folder of panoramas; None: views of the route's synthetic city

    _route_city: CityOptions | None = field(default=None, init=False)  # of the route
    _rail: Rail | None = field(default=None, init=False)
    _names: tuple[str, ...] = field(default=(), init=False)  # of the route's landmarks
    _first: int = field(default=0, init=False)  # index of the location at which the episode began
    _location: int = field(default=0, init=False)
    _attempts: int = field(default=0, init=False)  # at this location
    _steps: int = field(default=0, init=False)
    _right_steps: int = field(default=0, init=False)
    _recognized: int = field(default=0, init=False)  # steps whose answer reported the observation rightly
    _ended: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        for name, low in (("verify_iter", 1), ("straight_points", 0)):
            value = getattr(self, name)
            if not _is_integer(value) or value < low:
                raise ValueError(f"{name} must be an integer, {low} or more; got {value!r}")
        if isinstance(self.drop_rate, bool) or not isinstance(self.drop_rate, int | float):
            raise ValueError(f"drop_rate must be a number in [0, 1]; got {self.drop_rate!r}")
        if not 0 <= self.drop_rate <= 1:
            raise ValueError(f"drop_rate must be in [0, 1]; got {self.drop_rate}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if self.routes is not None and not isinstance(self.routes, str):
            raise ValueError(f"routes must be the path of a route file; got {self.routes!r}")
        if self.routes is not None and self.city:
            raise ValueError(f"routes={self.routes!r} and city={self.city!r} exclude each other; give one of them")
        if not isinstance(self.city, Mapping):
            raise ValueError(f"city must be a mapping of city options; got {self.city!r}")
        CityOptions.from_mapping(self.city)
        if not _is_integer(self.view_size) or not 32 <= self.view_size <= 2048:
            raise ValueError(f"view_size must be an integer, 32 to 2048; got {self.view_size!r}")
        if self.panoramas is not None and not isinstance(self.panoramas, str):
            raise ValueError(f"panoramas must be the path of a folder of panoramas; got {self.panoramas!r}")

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Starts at the beginning of a route, or at options["location"], with the expert's actions as the history.

        The route is options["route"] (an object of the schema in routes.py), else number options["route_index"] of the
        route file, else drawn from `seed`. `seed` also draws the initial heading, where the route has none, and the
        points of the rail.
        """
        options = options or {}
        unknown = set(options) - set(RESET_OPTIONS)
        if unknown:
            raise ValueError(f"unknown reset options {sorted(unknown)}; allowed: {', '.join(RESET_OPTIONS)}")
        rng = random.Random(seed)
        route = self._route(rng, options)
        rail = build_rail(route, rng, self.mode, self.straight_points, self.drop_rate)
        location = options.get("location", 0)
        if not _is_integer(location) or not 0 <= location < len(rail.locations):
            raise ValueError(f"options['location'] must be 0 to {len(rail.locations) - 1}; got {location!r}")
        landmarks = (parse_landmark(milestone.landmark) for milestone in rail.milestones)
        self._names = tuple(landmark.name for landmark in landmarks if landmark)
        self._route_city = CityOptions.from_mapping(route.city) if route.city else None
        self._rail, self._first, self._location = rail, location, location
        self._attempts = self._steps = self._right_steps = self._recognized = 0
        self._ended = False
        info = {"destination": route.destination, "num_locations": len(rail.locations), "location": location}
        return self._opening(rail), info

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judges one answer.

        info: verdict, reason, action, success, per_step_accuracy (right steps / steps; every attempt is a step),
        num_steps, attempts (at the location that was judged), location (its index), num_locations. With modality
        `image` and the paper's prompts also recognition_accuracy: the share of steps that reported what is there.
        """
        rail = self._rail
        if self._ended or rail is None:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._attempts += 1
        self._steps += 1
        judged, location, attempts = self._judge(text), self._location, self._attempts
        if self.modality == "image":
            self._recognized += recognized(text, rail.locations[location], self._names)
        self._right_steps += judged.success
        last_attempt = self.verify_iter if self.mode == "paper" else self.verify_iter + 1
        truncated = not judged.success and attempts == last_attempt
        terminated = judged.success and location == len(rail.locations) - 1
        self._ended = terminated or truncated
        if judged.success and not terminated:
            self._location += 1
            self._attempts = 0
        info = {
            "verdict": judged.name,
            "reason": judged.reason,
            "action": judged.action,
            "success": terminated,
            "per_step_accuracy": self._right_steps / self._steps,
            "num_steps": self._steps,
            "attempts": attempts,
            "location": location,
            "num_locations": len(rail.locations),
        }
        if self.modality == "image" and self.prompt_style == "paper":
            info["recognition_accuracy"] = self._recognized / self._steps
        return self._next_observation(rail, judged), self._reward(rail, judged, terminated), terminated, truncated, info

    def expert_action(self) -> str:
        """The expert's answer at the current location."""
        if self._rail is None:
            raise RuntimeError("expert_action() without a route: call reset() first")
        return prompts.demonstration(self._rail, self._location, self.action_space, self.prompt_style)

    def _route(self, rng: random.Random, options: Mapping[str, Any]) -> Route:
        if "route" in options:
            return parse_route(options["route"], "options['route']")
        if self.routes is None:
            if "route_index" in options:
                raise ValueError("options['route_index'] needs a route file; set `routes` of the environment")
            city = make_city(CityOptions.from_mapping(self.city))
            return parse_route(sample_routes(city, 1, rng.randrange(2**31))[0])
        routes = _routes_of(self.routes)
        index = options.get("route_index", rng.randrange(len(routes)))
        if not _is_integer(index) or not 0 <= index < len(routes):
            raise ValueError(f"options['route_index'] must be 0 to {len(routes) - 1}; got {index!r}")
        route: Route = routes[index]
        return route

    def _judge(self, text: str) -> Verdict:
        if self._attempts > self.verify_iter:  # mode `upstream` only
            return verdict("truncated", "truncated")
        assert self._rail is not None
        return verify(text, self._rail.locations[self._location], self.action_space, self._names, self.mode)

    def _reward(self, rail: Rail, judged: Verdict, terminated: bool) -> float:
        if self.reward == "shaped":
            return judged.reward
        if self.reward == "per_step":
            return judged.success / (len(rail.locations) - self._first)
        return float(terminated)

    def _opening(self, rail: Rail) -> Observation:
        """The first observation; in one growing chat that begins later on, the chat so far as well."""
        if self.context == "per_location" or self._first == 0:
            return self._fresh(rail, reset_context=False)
        chat = [{"role": "user", "content": prompts.prompt(rail, 0, self.action_space, self.prompt_style)}]
        for index in range(self._first):
            answer = prompts.demonstration(rail, index, self.action_space, self.prompt_style)
            shown = self.modality if index + 1 == self._first else "text"  # earlier observations stay text
            following = prompts.observation(rail.locations[index + 1], index + 1, self.prompt_style, shown)
            chat += [{"role": "assistant", "content": answer}, {"role": "user", "content": following}]
        images = self._pictures(rail)
        return {"text": chat[-1]["content"], "images": images, "reset_context": False, "messages": chat}

    def _next_observation(self, rail: Rail, judged: Verdict) -> Observation:
        if self._ended:
            return {"text": "", "images": [], "reset_context": False}
        if not judged.success:
            return {"text": prompts.feedback(judged, self.prompt_style), "images": [], "reset_context": False}
        if self.context == "per_location":
            return self._fresh(rail, reset_context=True)
        text = prompts.observation(rail.locations[self._location], self._location, self.prompt_style, self.modality)
        return {"text": text, "images": self._pictures(rail), "reset_context": False}

    def _fresh(self, rail: Rail, reset_context: bool) -> Observation:
        text = prompts.prompt(rail, self._location, self.action_space, self.prompt_style, self.modality)
        return {"text": text, "images": self._pictures(rail), "reset_context": reset_context}

    def _pictures(self, rail: Rail) -> list[Any]:
        """The views at the current location; ValueError where the route has none."""
        if self.modality == "text":
            return []
        location = rail.locations[self._location]
        if self.panoramas is not None:
            name = location.panorama or panorama_folder(self.panoramas).nearest(location.geocode)
            return [PanoramaPicture(self.panoramas, name, location.heading, self.view_size)]
        if self._route_city is None or location.panorama is None:
            raise ValueError(
                "modality='image' needs views: this route is of no synthetic city, so give the folder of its "
                "panoramas (panoramas=DIR; docs/vision.md), or play it with modality='text'"
            )
        return [StreetPicture(self._route_city, location.panorama, location.heading, self.view_size)]


@lru_cache(maxsize=8)
def _routes_of(path: str) -> tuple[Route, ...]:
    return tuple(parse_route(route, f"route {index} of {path}") for index, route in enumerate(read_route_file(path)))


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
