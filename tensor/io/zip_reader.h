#pragma once
// Zip archives (APPNOTE.TXT 6.3): stored and deflated members, ZIP64 too. What .npz and .pth files are made
// of.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/io/file.h"

namespace eigentrace {

namespace zip {
inline constexpr uint32_t local_signature = 0x04034B50, central_signature = 0x02014B50,
                          end_signature = 0x06054B50, end64_signature = 0x06064B50,
                          locator_signature = 0x07064B50;
inline constexpr size_t local_bytes = 30, central_bytes = 46, end_bytes = 22, end64_bytes = 56,
                        locator_bytes = 20;
}  // namespace zip

struct ZipMember {
  std::string name;
  uint32_t crc = 0;
  uint64_t packed = 0, size = 0, offset = 0;  ///< offset: of the packed bytes, once read
  bool deflated = false;
};

/// The directory of an archive, checked: members inside the file, apart from each other, of credible sizes.
class ZipReader {
 public:
  /// Errors start with `where` and call the format `kind` (".npz"): cut or damaged files; encrypted,
  /// overlapping or foreign members; compression other than deflate.
  ZipReader(const std::string& path, const std::string& where, const std::string& kind);

  const std::vector<ZipMember>& members() const { return members_; }
  const InputFile& file() const { return file_; }
  /// All bytes of a member, their CRC-32 checked. Error: more than max_bytes.
  std::string read(const ZipMember& member, uint64_t max_bytes) const;

 private:
  [[noreturn]] void wrong(const std::string& text) const;
  std::string bytes_at(uint64_t offset, uint64_t count, const char* what) const;
  void find_directory();
  void read_directory();
  void read_zip64(ZipMember& m, std::string_view extra) const;
  void check_overlaps();

  InputFile file_;
  std::string where_, kind_;
  uint64_t count_ = 0, directory_bytes_ = 0, directory_at_ = 0;
  std::vector<ZipMember> members_;
};

/// A member's bytes in order, inflated where needed, with their checksum. Errors start with `where`.
class ZipUnpacker {
 public:
  ZipUnpacker(const InputFile& file, const ZipMember& member, const std::string& where);
  ~ZipUnpacker();
  ZipUnpacker(const ZipUnpacker&) = delete;
  void read(void* to, size_t bytes);  ///< Error: the member has fewer
  void finish();                      ///< Error: the member has more, or another checksum

 private:
  void inflate_some(void* to, size_t bytes);
  void step();
  struct Stream;  // zlib's

  const InputFile& file_;
  const ZipMember& m_;
  const std::string& where_;
  uint64_t left_;
  Stream* z_ = nullptr;
  std::string input_;
  bool ended_ = false;
  uint32_t crc_ = 0;
};

}  // namespace eigentrace
