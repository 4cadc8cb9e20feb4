"""Ways to start a VLM server, one after another: each bare, through the fleet, asleep and awake again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import product
from statistics import median

import msgspec
from rich.console import Console

from configs.errors import FleetError
from ops.bench import vlm_fleet, vlm_sleep
from ops.bench.driven import FleetLoad
from ops.bench.noise import fresh, jpegs
from ops.bench.vlm_load import Ask, Heard, listen
from ops.bench.vlm_result import Keep, Pair, Point, Tried, point_text
from ops.bench.vlm_server import GpuUse, Served, Variant, gpu_use, served, watched_gpu
from ops.bench.vlm_settings import FOLDER, OWN, Settings, command, profile_text, questions
from ops.server import EmbeddedServer

#: Photos are made for this share of the arithmetic: no server reaches it.
_MOST_SHARE = 0.9


class Bench:
    """Variants one after another, each a server of its own."""

    def __init__(self, settings: Settings, console: Console, redis: EmbeddedServer, keep: "Keep") -> None:
        self._settings = settings
        self._console = console
        self._redis = redis
        self._keep = keep

    def run(self, variant: Variant) -> None:
        """Everything about one variant; what fails is its result, and the next one is tried."""
        settings = self._settings
        tried = Tried(variant)
        try:
            wanted = command(settings, variant, FOLDER / "server.toml")
            tried = Tried(variant, wanted.argv)
            with served(wanted, FOLDER / f"{variant.name}.log", settings.within_s) as server:
                self._questions = questions(settings, server.url)
                tried = msgspec.structs.replace(tried, ready_s=round(server.ready_s, 1))
                self._say(f"{variant.name}: ready after {server.ready_s:.0f} s")
                for way, in_flight in product(settings.ways, settings.in_flight):
                    tried = self._and_point(tried, self._bare(server, variant.name, in_flight, way))
                best = max(tried.points, key=lambda point: (point.way == OWN, point.heard.rate))
                self._best = best.in_flight
                for number in range(settings.rounds):
                    tried = self._and_pair(tried, self._pair(server, variant.name, number))
                if settings.sleep:
                    tried = self._and_sleeps(tried, server)
        except FleetError as error:
            tried = msgspec.structs.replace(tried, error=str(error))
            self._say(f"{variant.name}: {error}")
        self._keep.put(tried)

    def _and_point(self, tried: Tried, point: Point) -> Tried:
        return self._kept(msgspec.structs.replace(tried, points=(*tried.points, point)))

    def _and_pair(self, tried: Tried, pair: Pair) -> Tried:
        pairs = (*tried.pairs, pair)
        return self._kept(
            msgspec.structs.replace(
                tried,
                pairs=pairs,
                bare_per_s=median(one.bare.heard.rate for one in pairs),
                fleet_per_s=round(median(one.fleet.photos_per_s for one in pairs), 2),
                ratio=round(median(one.ratio for one in pairs), 4),
            )
        )

    def _and_sleeps(self, tried: Tried, server: Served) -> Tried:
        settings, question = self._settings, self._questions[OWN]
        for level in (1, 2):
            slept = vlm_sleep.measure(server, settings.device, question, settings.side_px, level)
            self._say(f"{tried.variant.name}: {vlm_sleep.text(slept)}")
            tried = self._kept(msgspec.structs.replace(tried, sleeps=(*tried.sleeps, slept)))
        return tried

    def _kept(self, tried: Tried) -> Tried:
        self._keep.put(tried)
        return tried

    def _ask(self, server: Served, in_flight: int, way: str = OWN) -> Ask:
        settings = self._settings
        most = settings.most_per_s or _MOST_SHARE * settings.flop_per_s / settings.spec.flop(
            settings.image_tokens + 60, settings.side_px
        )
        return Ask(
            url=server.url,
            question=self._questions[way],
            side_px=settings.side_px,
            in_flight=in_flight,
            processes=min(settings.clients, in_flight),
            warm_up_s=settings.warm_up_s,
            window_s=settings.window_s,
            windows=settings.windows,
            most_per_s=most,
        )

    def _bare(self, server: Served, name: str, in_flight: int, way: str = OWN) -> Point:
        settings, samples = self._settings, FOLDER / "gpu.csv"
        before, cpu_before = server.counters(), server.cpu_s()
        with watched_gpu(settings.device, samples):
            heard = listen(self._ask(server, in_flight, way))
        hits, used = server.counters(), server.cpu_s()
        hits.subtract(before)
        used.subtract(cpu_before)
        point = self._point(way, in_flight, heard, gpu_use(samples), hits, used)
        self._say(f"{name}: bare, {point_text(point)}")
        return point

    def _point(
        self, way: str, in_flight: int, heard: Heard, gpu: GpuUse, hits: Mapping[str, float], cpu: Mapping[str, float]
    ) -> Point:
        settings = self._settings

        def share(flop: float) -> float:
            return round(heard.rate * flop / settings.flop_per_s, 4) if settings.flop_per_s else 0.0

        tokens = heard.prompt_tokens
        return Point(
            way=way,
            in_flight=in_flight,
            heard=heard,
            gpu=gpu,
            share=share(settings.spec.flop(tokens, settings.side_px)),
            share_by_parameters=share(settings.spec.flop_by_parameters(tokens, settings.side_px)),
            prefix_hits=_part(hits, "vllm:prefix_cache"),
            photo_hits=_part(hits, "vllm:mm_cache"),
            # Photos are answered in the clients' time, and nothing much runs while they make them.
            cores={name: round(s * heard.rate / max(heard.answered, 1), 2) for name, s in cpu.items() if s > 0},
        )

    def _pair(self, server: Served, name: str, number: int) -> Pair:
        settings = self._settings
        bare = self._bare(server, name, self._best)
        folder = FOLDER / f"{name}-fleet-{number}"
        folder.mkdir()
        # So that the middle of the run lasts as long as the bare run's windows.
        count = max(int(bare.heard.rate * settings.window_s * settings.windows / 0.7), 40)
        load = FleetLoad(
            profile=profile_text(settings, server.url),
            weights=settings.checkpoint.parent,
            photos=list(jpegs(count, settings.side_px, first=fresh(count))),
            side_px=settings.side_px,
        )
        before = server.counters()
        with watched_gpu(settings.device, FOLDER / "gpu.csv"):
            fleet = vlm_fleet.measure(self._redis, folder, load)
        hits = server.counters()
        hits.subtract(before)
        pair = Pair(bare, fleet, round(fleet.photos_per_s / bare.heard.rate, 4))
        self._say(
            f"{name}: fleet, {fleet.photos_per_s:,.1f}/s in the middle {fleet.window_s:.0f} s "
            f"({fleet.overall_per_s:,.1f}/s over all {fleet.photos:,} photos), {pair.ratio:.1%} of bare; "
            f"cache hits: prefix {_part(hits, 'vllm:prefix_cache'):.2%}, photos {_part(hits, 'vllm:mm_cache'):.2%}"
        )
        return pair

    def _say(self, line: str) -> None:
        self._console.print(f"{datetime.now(UTC):%H:%M:%S} {line}", soft_wrap=True)


def _part(counted: Mapping[str, float], cache: str) -> float:
    """Hits of a cache, of what was looked up in it."""
    looked = counted.get(f"{cache}_queries_total", 0)
    return counted.get(f"{cache}_hits_total", 0) / looked if looked else 0.0
