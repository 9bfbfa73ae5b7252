// Drawing Pathfinder's images.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "tasks/pathfinder.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

namespace eigentrace {

namespace {

// In pixels. A dash and the gap after it make a step; paths keep so far apart that no gap is wider than the
// way to the next path.
constexpr double kDash = 1.7, kGap = 1.3, kHalfWidth = 0.5, kApart = 3.7, kBorder = 2.0, kDot = 1.3;
constexpr double kTurn = 0.55;  // largest turn from dash to dash, radians

struct Point {
  double x = 0, y = 0;
};
struct Dash {
  Point from, to;
};
using Path = std::vector<Dash>;

// Squared distance of a point from a dash.
double distance2(Point p, const Dash& d) {
  const double ux = d.to.x - d.from.x, uy = d.to.y - d.from.y, px = p.x - d.from.x, py = p.y - d.from.y;
  const double s = std::clamp((px * ux + py * uy) / (ux * ux + uy * uy), 0.0, 1.0);
  return (px - s * ux) * (px - s * ux) + (py - s * uy) * (py - s * uy);
}

class Scene {
 public:
  Scene(Rng& rng, int64_t side) : rng_(rng), side_(static_cast<double>(side)) {}

  // Tries to put in a path of `dashes` dashes. Where no dash fits, the last ones are taken back and drawn
  // anew.
  bool add_path(int64_t dashes, int tries) {
    for (int i = 0; i < tries; ++i) {
      Path path;
      const Point start{rng_.uniform(kBorder, side_ - kBorder), rng_.uniform(kBorder, side_ - kBorder)};
      const double angle = rng_.uniform(0, 2 * std::numbers::pi);
      if (!free(start, path)) continue;
      for (int64_t budget = 10 * dashes; budget > 0 && static_cast<int64_t>(path.size()) < dashes; --budget)
        if (!grow(path, start, angle)) path.resize(path.size() - std::min<size_t>(path.size(), 3));
      if (static_cast<int64_t>(path.size()) == dashes) return paths_.push_back(path), true;
    }
    return false;
  }

  Point end(size_t path, bool last) const {
    return last ? paths_[path].back().to : paths_[path].front().from;
  }

  std::vector<uint8_t> render(const std::vector<Point>& dots) const {
    const auto side = static_cast<int64_t>(side_);
    std::vector<uint8_t> pixels(static_cast<size_t>(side * side), 0);
    const auto ink = [&](Point low, Point high, auto&& depth) {  // depth: pixels inside the shape's edge
      for (int64_t r = std::max<int64_t>(0, std::lround(low.y - 3));
           r < std::min(side, std::lround(high.y + 3)); ++r)
        for (int64_t c = std::max<int64_t>(0, std::lround(low.x - 3));
             c < std::min(side, std::lround(high.x + 3)); ++c) {
          const Point p{static_cast<double>(c) + 0.5, static_cast<double>(r) + 0.5};
          const auto level = static_cast<uint8_t>(std::lround(255 * std::clamp(depth(p) + 0.5, 0.0, 1.0)));
          pixels[r * side + c] = std::max(pixels[r * side + c], level);
        }
    };
    for (const Path& path : paths_)
      for (const Dash& d : path)
        ink({std::min(d.from.x, d.to.x), std::min(d.from.y, d.to.y)},
            {std::max(d.from.x, d.to.x), std::max(d.from.y, d.to.y)},
            [&](Point p) { return kHalfWidth - std::sqrt(distance2(p, d)); });
    for (const Point dot : dots)
      ink(dot, dot, [&](Point p) { return kDot - std::hypot(p.x - dot.x, p.y - dot.y); });
    return pixels;
  }

 private:
  // Adds one dash behind the last, turning a little, where nothing is near.
  bool grow(Path& path, Point start, double angle) {
    Point at = start;
    if (!path.empty()) {
      const Dash& last = path.back();
      angle = std::atan2(last.to.y - last.from.y, last.to.x - last.from.x);
    }
    for (int i = 0; i < 6; ++i) {
      const double turned = path.empty() ? angle : angle + rng_.uniform(-kTurn, kTurn);
      const double c = std::cos(turned), s = std::sin(turned);
      if (!path.empty()) at = {path.back().to.x + kGap * c, path.back().to.y + kGap * s};
      const Point to{at.x + kDash * c, at.y + kDash * s};
      if (!free(to, path)) continue;
      path.push_back({at, to});
      return true;
    }
    return false;
  }

  static bool near(Point p, const Dash& d) {
    constexpr double kReach = kApart + kDash;  // farther from its start, farther from all of the dash
    if (std::abs(p.x - d.from.x) > kReach || std::abs(p.y - d.from.y) > kReach) return false;
    return distance2(p, d) < kApart * kApart;
  }

  bool free(Point p, const Path& own) const {
    if (p.x < kBorder || p.y < kBorder || p.x > side_ - kBorder || p.y > side_ - kBorder) return false;
    for (const Path& path : paths_)
      for (const Dash& d : path)
        if (near(p, d)) return false;
    for (size_t i = 0; i + 1 < own.size(); ++i)  // its last dash is near by design
      if (near(p, own[i])) return false;
    return true;
  }

  Rng& rng_;
  double side_;
  std::vector<Path> paths_;
};

}  // namespace

PathfinderImage draw_pathfinder(const PathfinderConfig& config, Split split, int64_t index) {
  Rng rng = example_rng(config.seed, split, index);
  PathfinderImage image;
  image.label = static_cast<int32_t>(rng.below(2));
  for (int attempt = 0; attempt < 1000; ++attempt) {
    Scene scene(rng, config.resolution);
    if (!scene.add_path(config.contour_length, 20) || !scene.add_path(config.contour_length, 20)) continue;
    const bool first = rng.below(2) != 0, second = rng.below(2) != 0;
    std::vector<Point> dots = {scene.end(0, first)};
    dots.push_back(image.label == 1 ? scene.end(0, !first) : scene.end(1, second));
    for (int64_t i = 0; i < config.distractors; ++i)
      scene.add_path(std::max<int64_t>(1, config.contour_length / 3), 4);
    image.pixels = scene.render(dots);
    return image;
  }
  fail_usage(fmt::format(
      "pathfinder: contour_length: two paths of {} dashes found no room in {} x {} pixels a thousand "
      "times; use shorter paths or a higher resolution",
      config.contour_length, config.resolution, config.resolution));
}

}  // namespace eigentrace
