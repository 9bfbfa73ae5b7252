#pragma once
// What the image tasks share: file formats, scan orders, pictures a person can see in a terminal.
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace eigentrace {

/// Images of one size in one buffer, label beside each.
struct ImageSet {
  int64_t height = 0, width = 0, channels = 1;
  std::vector<uint8_t> pixels;  ///< [count, channels, height, width]
  std::vector<uint8_t> labels;  ///< [count]
  int64_t count() const { return static_cast<int64_t>(labels.size()); }
  std::span<const uint8_t> image(int64_t i) const {
    const int64_t n = height * width * channels;
    return {pixels.data() + i * n, static_cast<size_t>(n)};
  }
};

/// Appends the records of a CIFAR-10 binary file: a label byte, then 1,024 bytes red, green, blue each.
/// Errors name `file` and the record: a size that is no multiple of 3,073, a label above 9.
void parse_cifar(std::string_view bytes, const std::string& file, ImageSet& out);

/// The data of an IDX file (MNIST), inflated if it is gzip. dims: the sizes it must have from the second on
/// (the first is free). Errors name `file`: wrong magic, sizes, length, or compressed data.
std::vector<uint8_t> parse_idx(std::string_view bytes, const std::string& file,
                               std::span<const int64_t> dims);

/// The pixels of an 8-bit grey PNG of that size. Errors name `file`: no PNG, damaged, of another size or
/// kind.
std::vector<uint8_t> parse_png(std::string_view bytes, const std::string& file, int64_t height,
                               int64_t width);
/// An 8-bit grey PNG.
std::string write_png(std::span<const uint8_t> pixels, int64_t height, int64_t width);

/// Grey level of a colour, in 16-bit fixed point: (19595 R + 38470 G + 7471 B + 32768) >> 16.
inline uint8_t grey_level(uint8_t r, uint8_t g, uint8_t b) {
  return static_cast<uint8_t>((19595u * r + 38470u * g + 7471u * b + 32768u) >> 16);
}

/// perm[i]: the pixel (row * side + column) that step i shows, for a square image.
/// "" raster; "br" bit reversal of the pixel number; "snake" odd rows from right to left; "hilbert" Hilbert's
/// curve (Skilling 2004). `side` is a power of two. Errors (usage): another name ("transpose" is no order but
/// a second feature, see cifar.h).
std::vector<int32_t> scan_order(const std::string& name, int64_t side);

/// An image in characters, two columns a pixel.
std::string draw(std::span<const uint8_t> grey, int64_t height, int64_t width);

}  // namespace eigentrace
