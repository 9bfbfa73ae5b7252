#pragma once
// Pathfinder (Linsley et al. 2018; Long Range Arena): an image of dashed paths and two dots, pixel by pixel.
// Does one path join the dots? Images come from the published folders or are drawn here.
//
//   input   1,024 grey levels in raster order, as tokens 0..255 or as (x/255 - 0.5)/0.5
//   label   1 if the dots are the two ends of one path; 0 if they are ends of two paths
#include <memory>
#include <string>
#include <vector>

#include "tasks/task.h"

namespace eigentrace {

struct PathfinderConfig {
  static constexpr const char* kName = "pathfinder";
  static constexpr const char* kAbout = "are two dots joined by a dashed path? an image, one pixel a step";
  std::string data_dir;
  std::string level = "curv_contour_length_14";
  bool tokenize = false;
  double val_split = 0.1;
  double test_split = 0.1;
  uint64_t seed = 42;
  int64_t resolution = 32;
  int64_t contour_length = 14;
  int64_t distractors = 6;
  int64_t num_train_examples = 160'000;
  int64_t num_validation_examples = 20'000;
  int64_t num_test_examples = 20'000;
};

template <class V>
void visit_fields(V& v, PathfinderConfig& c) {
  v("data_dir", c.data_dir, "folder of pathfinder32 (or of the level's folder); empty: draw the images");
  v("level", c.level,
    "folder of the difficulty: curv_baseline, curv_contour_length_9 or curv_contour_length_14",
    !c.data_dir.empty(), "the images are drawn, not read");
  v("tokenize", c.tokenize, "grey levels as tokens 0..255, else normalised floats");
  v("val_split", c.val_split, "share of the published images held out for validation", !c.data_dir.empty(),
    "the images are drawn, not read");
  v("test_split", c.test_split, "share of the published images held out for testing", !c.data_dir.empty(),
    "the images are drawn, not read");
  v("seed", c.seed, "of the split of the published images, or of the drawn ones");
  v("resolution", c.resolution, "pixels a side (published: 32)");
  v("contour_length", c.contour_length, "dashes of a path: the difficulty", c.data_dir.empty(),
    "the examples come from data_dir");
  v("distractors", c.distractors, "short paths that are put in where there is room", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_train_examples", c.num_train_examples, "training examples", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_validation_examples", c.num_validation_examples, "validation examples", c.data_dir.empty(),
    "the examples come from data_dir");
  v("num_test_examples", c.num_test_examples, "test examples", c.data_dir.empty(),
    "the examples come from data_dir");
}

/// Errors: sizes that cannot be drawn (usage); missing folders, wrong metadata.
/// Published images are read when asked for: make() may throw for a missing or damaged file.
std::unique_ptr<Task> make_task(const PathfinderConfig& config);

struct PathfinderImage {
  std::vector<uint8_t> pixels;  ///< [resolution, resolution]
  int32_t label = 0;
};
/// A drawn image: two long paths that keep apart, short ones around them, a dot on an end of each long path
/// (label 0) or on both ends of the first (label 1), labels uniform. Errors (usage): the paths do not fit.
PathfinderImage draw_pathfinder(const PathfinderConfig& config, Split split, int64_t index);

struct PathfinderEntry {
  std::string file;  ///< relative to the level's folder
  int32_t label = 0;
};
/// Entries of one metadata text: lines of folder, file, …, the fourth field being the label. Errors name
/// `file`, line.
std::vector<PathfinderEntry> parse_pathfinder_metadata(std::string_view text, const std::string& file);

}  // namespace eigentrace
