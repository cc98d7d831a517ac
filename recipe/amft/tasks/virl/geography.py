"""Places on the globe and in a plane: distances in metres, headings in degrees clockwise from north."""

import math

Geocode = tuple[float, float]  # latitude, longitude in degrees
Point = tuple[float, float]  # metres to the east and to the north of an anchor

EARTH_RADIUS = 6_371_000.0
METRES_PER_DEGREE = math.pi * EARTH_RADIUS / 180


def distance_metres(first: Geocode, second: Geocode) -> float:
    """Great-circle distance (haversine)."""
    (latitude, longitude), (other_latitude, other_longitude) = first, second
    half_north = math.radians(other_latitude - latitude) / 2
    half_east = math.radians(other_longitude - longitude) / 2
    squared = math.sin(half_north) ** 2 + (
        math.cos(math.radians(latitude)) * math.cos(math.radians(other_latitude)) * math.sin(half_east) ** 2
    )
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(squared)))


def bearing(first: Geocode, second: Geocode) -> float:
    """Heading at `first` of the straight way to `second`, in [0, 360); for distances of a walk."""
    north = second[0] - first[0]
    east = (second[1] - first[1]) * math.cos(math.radians((first[0] + second[0]) / 2))
    return math.degrees(math.atan2(east, north)) % 360


def interpolate(first: Geocode, second: Geocode, share: float) -> Geocode:
    """The point at `share` (0 to 1) of the way from `first` to `second`."""
    return (first[0] + (second[0] - first[0]) * share, first[1] + (second[1] - first[1]) * share)


def to_geocode(anchor: Geocode, point: Point) -> Geocode:
    """A point of the plane around `anchor`, to a centimetre."""
    latitude = anchor[0] + point[1] / METRES_PER_DEGREE
    longitude = anchor[1] + point[0] / (METRES_PER_DEGREE * math.cos(math.radians(anchor[0])))
    return (round(latitude, 7), round(longitude, 7))


def plane_distance(first: Point, second: Point) -> float:
    """Distance in the plane, in metres."""
    return math.hypot(second[0] - first[0], second[1] - first[1])


def plane_heading(first: Point, second: Point) -> float:
    """Heading from `first` to `second`, in [0, 360)."""
    return math.degrees(math.atan2(second[0] - first[0], second[1] - first[1])) % 360


def heading_change(heading: float, next_heading: float) -> float:
    """The turn from one heading to another, in [-180, 180); negative is to the left."""
    return (next_heading - heading + 180) % 360 - 180
