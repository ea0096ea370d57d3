// Settings from one file: `key = value` a line, the keys of apply_setting(); what follows a # is a comment.
#pragma once

#include <string>

#include "settings.h"

namespace hotcache {

// Sets what the file at `path` says. Returns the problems, a line each that names the file and its line; what is wrong
// is left out, the rest counts. Nothing counts of a file that cannot be read, is over 64 KiB, or is not text.
std::string apply_config_file(Settings & settings, const std::string & path);

}  // namespace hotcache
