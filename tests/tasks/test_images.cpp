#include <doctest/doctest.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <set>
#include <string>

#include "tasks/config.h"
#include "tasks/files.h"
#include "tasks/images.h"
#include "tasks/sampling.h"
#include "tensor/error.h"

using namespace eigentrace;

namespace {

template <class F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

struct Folder {
  explicit Folder(const char* name) : path(std::filesystem::temp_directory_path() / name) {
    std::filesystem::remove_all(path);
  }
  ~Folder() { std::filesystem::remove_all(path); }
  std::filesystem::path path;
};

// Records with known pixels: channel k, pixel p of record i is (7 i + 3 p + 50 k) mod 256.
std::string cifar_records(int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    bytes += static_cast<char>(i % 10);
    for (int k = 0; k < 3; ++k)
      for (int p = 0; p < 1024; ++p) bytes += static_cast<char>(7 * i + 3 * p + 50 * k);
  }
  return bytes;
}

uint8_t cifar_pixel(int64_t i, int64_t p, int64_t k) { return static_cast<uint8_t>(7 * i + 3 * p + 50 * k); }

void write_cifar(const std::filesystem::path& dir) {
  for (int b = 1; b <= 5; ++b)
    write_file(dir / "cifar-10-batches-bin" / ("data_batch_" + std::to_string(b) + ".bin"), cifar_records(4));
  write_file(dir / "cifar-10-batches-bin" / "test_batch.bin", cifar_records(3));
}

Batch one(const Task& task, Split split, int64_t index) {
  Batch batch;
  task.make(split, std::span(&index, 1), batch);
  return batch;
}

std::string idx(const std::vector<int>& dims, const std::string& data) {
  std::string bytes = {0, 0, 8, static_cast<char>(dims.size())};
  for (int d : dims)
    for (int shift : {24, 16, 8, 0}) bytes += static_cast<char>(d >> shift);
  return bytes + data;
}

std::string gzip(const std::string& bytes) {
  z_stream stream{};
  deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(bytes.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

}  // namespace

TEST_CASE("scan_order: every order shows each pixel once, as defined") {
  for (const char* name : {"", "br", "snake", "hilbert"}) {
    CAPTURE(name);
    const std::vector<int32_t> order = scan_order(name, 32);
    CHECK(std::set<int32_t>(order.begin(), order.end()).size() == 1024);
    CHECK(*std::ranges::max_element(order) == 1023);
  }
  const std::vector<int32_t> br = scan_order("br", 32), snake = scan_order("snake", 32),
                             hilbert = scan_order("hilbert", 32);
  CHECK(br[1] == 512);
  CHECK(br[2] == 256);
  CHECK(br[3] == 768);
  CHECK(br[1022] == 511);
  CHECK(snake[31] == 31);
  CHECK(snake[32] == 63);
  CHECK(snake[63] == 32);
  CHECK(snake[64] == 64);
  CHECK(hilbert[0] == 0);
  for (int i = 1; i < 1024; ++i) {  // neighbours in time are neighbours in the image
    const int dr = hilbert[i] / 32 - hilbert[i - 1] / 32, dc = hilbert[i] % 32 - hilbert[i - 1] % 32;
    REQUIRE(std::abs(dr) + std::abs(dc) == 1);
  }
  CHECK_THROWS_AS(scan_order("spiral", 32), UsageError);
}

TEST_CASE("published_permutation: it is the shuffle of the published loaders") {
  // Written out by hand from the first words of MT19937 with seed 42: 1608637542, 3421126067, 4083286876,
  // 787846414.
  CHECK(published_permutation(42, 1) == std::vector<int64_t>{0});
  std::vector<int64_t> expected = {0, 1, 2, 3, 4};
  std::swap(expected[0], expected[0 + 1608637542u % 5]);
  std::swap(expected[1], expected[1 + 3421126067u % 4]);
  std::swap(expected[2], expected[2 + 4083286876u % 3]);
  std::swap(expected[3], expected[3 + 787846414u % 2]);
  CHECK(published_permutation(42, 5) == expected);
}

TEST_CASE("cifar: tokens, grey levels, colours and the transposed scan hold the pixels the files have") {
  const Folder dir("eigentrace_cifar");
  write_cifar(dir.path);
  CifarConfig c;
  c.data_dir = dir.path.string(), c.grayscale = true, c.tokenize = true;
  auto task = make_task(c);
  CHECK(task->size(Split::train) == 18);
  CHECK(task->size(Split::validation) == 2);
  CHECK(task->size(Split::test) == 3);
  const auto grey = [](int64_t i, int64_t p) {
    return (19595 * cifar_pixel(i, p, 0) + 38470 * cifar_pixel(i, p, 1) + 7471 * cifar_pixel(i, p, 2) +
            32768) >>
           16;
  };
  Batch batch = one(*task, Split::test, 2);
  CHECK(batch.labels[0] == 2);
  for (int p = 0; p < 1024; ++p) REQUIRE(batch.tokens[p] == grey(2, p));
  // The held-out part: training and validation together are the files' records, shuffled as published.
  std::multiset<int32_t> found;
  const std::vector<int64_t> order = published_permutation(42, 20);
  for (int i = 0; i < 18; ++i) {
    batch = one(*task, Split::train, i);
    CHECK(batch.labels[0] == order[i] % 4);
    found.insert(batch.tokens[0]);
  }
  for (int i = 0; i < 2; ++i) found.insert(one(*task, Split::validation, i).tokens[0]);
  std::multiset<int32_t> expected;
  for (int i = 0; i < 20; ++i) expected.insert(grey(i % 4, 0));
  CHECK(found == expected);

  c.permute = "br";
  batch = one(*make_task(c), Split::test, 1);
  CHECK(batch.tokens[1] == grey(1, 512));
  c.permute.reset();
  c.tokenize = false;
  batch = one(*make_task(c), Split::test, 1);
  CHECK(batch.features == 1);
  CHECK(batch.values[33] ==
        doctest::Approx((grey(1, 33) / 255.0 - 122.6 / 255) / (61.0 / 255)).epsilon(1e-6));
  c.permute = "transpose";
  batch = one(*make_task(c), Split::test, 1);
  CHECK(batch.features == 2);
  CHECK(batch.values[2 * 33] == doctest::Approx((grey(1, 33) - 122.6) / 61.0).epsilon(1e-5));
  CHECK(batch.values[2 * 1 + 1] == doctest::Approx((grey(1, 32) - 122.6) / 61.0).epsilon(1e-5));
  c.permute.reset();
  c.grayscale = false;
  batch = one(*make_task(c), Split::test, 1);
  CHECK(batch.features == 3);
  const double mean[] = {0.4914, 0.4822, 0.4465}, deviation[] = {0.247, 0.243, 0.261};
  for (int k = 0; k < 3; ++k)
    CHECK(batch.values[3 * 100 + k] ==
          doctest::Approx((cifar_pixel(1, 100, k) / 255.0 - mean[k]) / deviation[k]).epsilon(1e-5));
  c.tokenize = true;
  CHECK_THROWS_AS(make_task(c), UsageError);
  c.grayscale = true, c.permute = "transpose";
  CHECK_THROWS_AS(make_task(c), UsageError);
  c.permute = "zigzag";
  CHECK_THROWS_AS(make_task(c), UsageError);
}

TEST_CASE("cifar: missing, truncated and wrong files are errors that name file, place and fix") {
  const Folder dir("eigentrace_cifar_bad");
  CifarConfig c;
  c.data_dir = dir.path.string();
  const auto error = [&] { return error_of([&] { make_task(c); }); };
  CHECK(error().find("download_data.sh cifar") != std::string::npos);
  write_cifar(dir.path);
  CHECK(error().empty());
  const auto file = dir.path / "cifar-10-batches-bin" / "data_batch_3.bin";
  write_file(file, cifar_records(4).substr(0, 3073 * 2 + 5));
  CHECK(error().find("data_batch_3.bin: expected records of 3,073 bytes") != std::string::npos);
  std::string bytes = cifar_records(4);
  bytes[3073 * 2] = 10;
  write_file(file, bytes);
  CHECK(error().find("data_batch_3.bin: record 2 (byte 6146): expected a label from 0 to 9, found 10") !=
        std::string::npos);
  write_file(file, "");
  CHECK(error().find("found 0 bytes") != std::string::npos);
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  CHECK(error().find("expected a file") != std::string::npos);
}

TEST_CASE("mnist: IDX files, plain and compressed, in raster order or by bit reversal") {
  const Folder dir("eigentrace_mnist");
  std::string pixels;
  for (int i = 0; i < 10 * 784; ++i) pixels += static_cast<char>(i % 251);
  const std::string labels = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  write_file(dir.path / "train-images-idx3-ubyte.gz", gzip(idx({10, 28, 28}, pixels)));
  write_file(dir.path / "train-labels-idx1-ubyte", idx({10}, labels));
  write_file(dir.path / "t10k-images-idx3-ubyte", idx({10, 28, 28}, pixels));
  write_file(dir.path / "t10k-labels-idx1-ubyte.gz", gzip(idx({10}, labels)));
  MnistConfig c;
  c.data_dir = dir.path.string(), c.permute = false;
  Batch batch = one(*make_task(c), Split::test, 3);
  CHECK(batch.time == 784);
  CHECK(batch.labels[0] == 3);
  for (int p = 0; p < 784; ++p) REQUIRE(batch.values[p] == static_cast<float>((3 * 784 + p) % 251) / 255.0f);
  c.permute = true;
  const Batch permuted = one(*make_task(c), Split::test, 3);
  // 512, 256, 768, 128, … of the bit reversal of 1,024, those below 784
  const int first[] = {0, 512, 256, 768, 128, 640, 384, 64};
  for (int i = 0; i < 8; ++i) CHECK(permuted.values[i] == batch.values[first[i]]);
  CHECK(std::accumulate(permuted.values.begin(), permuted.values.end(), 0.0) ==
        doctest::Approx(std::accumulate(batch.values.begin(), batch.values.end(), 0.0)));

  const auto error = [&] { return error_of([&] { make_task(c); }); };
  const auto with = [&](const char* name, const std::string& bytes) {
    write_file(dir.path / name, bytes);
    std::string message = error();
    CHECK(message.find(name) != std::string::npos);
    return message;
  };
  const std::string good = idx({10, 28, 28}, pixels);
  CHECK(with("t10k-images-idx3-ubyte", good.substr(0, 700)).find("as the header says") != std::string::npos);
  CHECK(with("t10k-images-idx3-ubyte", idx({10, 28, 27}, pixels)).find("expected 28, found 27") !=
        std::string::npos);
  CHECK(with("t10k-images-idx3-ubyte", "abc").find("IDX") != std::string::npos);
  write_file(dir.path / "t10k-images-idx3-ubyte", good);
  const std::string zipped = gzip(good);
  CHECK(with("train-images-idx3-ubyte.gz", zipped.substr(0, zipped.size() / 2)).find("gzip") !=
        std::string::npos);
  write_file(dir.path / "train-images-idx3-ubyte.gz", zipped);
  CHECK(with("train-labels-idx1-ubyte", idx({9}, labels.substr(1))).find("a label for each") !=
        std::string::npos);
  CHECK(with("train-labels-idx1-ubyte", idx({10}, labels.substr(1) + "\x0B")).find("found 11") !=
        std::string::npos);
}

TEST_CASE("pathfinder: drawn labels can be read off the pixels") {
  // Marking every pixel that has ink and joining those at most two apart (a gap is narrower, the way to
  // another path wider), the dots are joined if and only if the label says so.
  PathfinderConfig c;
  int joined = 0, wrong = 0;
  const int images = 100;
  for (int i = 0; i < images; ++i) {
    const PathfinderImage image = draw_pathfinder(c, Split::train, i);
    REQUIRE(image.pixels.size() == 1024);
    std::vector<std::pair<int, int>>
        dots;  // pixels whose whole neighbourhood is dark: only dots are that thick
    for (int r = 1; r < 31; ++r)
      for (int col = 1; col < 31; ++col) {
        int sum = 0;
        for (int dr = -1; dr <= 1; ++dr)
          for (int dc = -1; dc <= 1; ++dc) sum += image.pixels[(r + dr) * 32 + col + dc];
        if (sum > 1150) dots.emplace_back(r, col);
      }
    REQUIRE(!dots.empty());
    std::vector<int> seen(1024, 0), stack;
    const auto visit = [&](int p) {
      if (!seen[p] && image.pixels[p] > 45) seen[p] = 1, stack.push_back(p);
    };
    visit(dots[0].first * 32 + dots[0].second);
    while (!stack.empty()) {
      const int p = stack.back(), r = p / 32, col = p % 32;
      stack.pop_back();
      for (int dr = -1; dr <= 1; ++dr)
        for (int dc = -1; dc <= 1; ++dc)
          if (r + dr >= 0 && r + dr < 32 && col + dc >= 0 && col + dc < 32) visit((r + dr) * 32 + col + dc);
    }
    bool all = true;
    for (const auto& [r, col] : dots) all = all && seen[r * 32 + col];
    wrong += all != (image.label == 1);
    joined += image.label;
  }
  CHECK(wrong <= 2);  // 0 of 300: two paths may still pass at the least distance
  CHECK(std::abs(joined - images / 2) < 20);
  c.contour_length = 60;
  CHECK_THROWS_AS(make_task(c), UsageError);
}

TEST_CASE("pathfinder: the published folders are read, split, and their errors named") {
  const Folder dir("eigentrace_pathfinder");
  const auto level = dir.path / "pathfinder32" / "curv_contour_length_14";
  std::vector<uint8_t> pixels(1024);
  for (int folder : {2, 10}) {
    std::string metadata;
    for (int i = 0; i < 10; ++i) {
      std::ranges::fill(pixels, static_cast<uint8_t>(20 * folder + i));
      const std::string name = "sample_" + std::to_string(i) + ".png",
                        images = "imgs/" + std::to_string(folder);
      write_file(level / images / name, write_png(pixels, 32, 32));
      metadata.append(images).append(" ").append(name).append(i % 2 ? " 0 1 1.0 2\n" : " 0 0 1.0 2\n");
    }
    write_file(level / "metadata" / (std::to_string(folder) + ".npy"), metadata);
  }
  PathfinderConfig c;
  c.data_dir = dir.path.string(), c.tokenize = true;
  const auto task = make_task(c);
  CHECK(task->size(Split::train) == 16);
  CHECK(task->size(Split::validation) == 2);
  const std::vector<int64_t> order = published_permutation(42, 20);  // folder 2 comes before folder 10
  for (int i = 0; i < 20; ++i) {
    const Split split = i < 16 ? Split::train : i < 18 ? Split::validation : Split::test;
    const Batch batch = one(*task, split, i < 16 ? i : (i - 16) % 2);
    CHECK(batch.tokens[77] == (order[i] < 10 ? 40 : 200) + order[i] % 10);
    CHECK(batch.labels[0] == order[i] % 2);
  }
  c.tokenize = false;
  CHECK(one(*make_task(c), Split::train, 0).values[0] ==
        doctest::Approx(((order[0] < 10 ? 40 : 200) + order[0] % 10) / 127.5 - 1));

  const auto image =
      level / "imgs" / (order[0] < 10 ? "2" : "10") / ("sample_" + std::to_string(order[0] % 10) + ".png");
  const auto error = [&] { return error_of([&] { one(*make_task(c), Split::train, 0); }); };
  write_file(image, write_png(std::vector<uint8_t>(1024), 16, 64));
  CHECK(error().find("expected an 8-bit grey PNG of 32 x 32 pixels, found 64 x 16") != std::string::npos);
  write_file(image, "");
  CHECK(error().find("empty file") != std::string::npos);
  write_file(image, write_png(pixels, 32, 32).substr(0, 60));
  CHECK(error().find("cannot be read") != std::string::npos);
  write_file(level / "metadata" / "2.npy", "imgs/2 sample_0.png 0 2\n");
  CHECK(error().find("2.npy: line 1") != std::string::npos);
  write_file(level / "metadata" / "2.npy", "../2 sample_0.png 0 1\n");
  CHECK(error().find("2.npy: line 1") != std::string::npos);
  std::filesystem::remove_all(level);
  CHECK(error().find("download_data.sh pathfinder") != std::string::npos);
}
