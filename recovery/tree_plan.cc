// SPDX-License-Identifier: BSD-3-Clause
// Reads both inventories into entries and objects, matches them, and writes the operations. See tree_plan.h.
#include "recovery/tree_plan.h"

#include <sys/stat.h>

#include <charconv>
#include <cstddef>
#include <functional>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "recovery/inventory.h"

namespace pmirror::recovery {
namespace {

constexpr char kDefaultAcl[] = "system.posix_acl_default";
constexpr char kCapability[] = "security.capability";

// The names of a tree begin in an inventory; both outlive everything here.
struct Entry {
  const TreeItem* item = nullptr;
  FileId parent = FileId::kNone;  // kNone: an orphan
  std::string_view name;
  bool kept = false;  // both trees have it, with one object
};

struct Object {
  const TreeItem* item = nullptr;  // that of one of its names
  bool named = false;
  bool orphan = false;  // it is among the orphans, now
  bool kept = false;    // copy: one of its names is
  bool alive = false;   // copy: the original has the object, and it can be made equal
  bool made = false;    // original: created by the plan
  bool done = false;    // original: its attributes are planned
};

struct EntryKey {
  FileId parent{};
  std::string_view name;
  friend bool operator==(const EntryKey&, const EntryKey&) = default;
};

struct EntryHash {
  size_t operator()(const EntryKey& key) const {
    return std::hash<std::string_view>()(key.name) ^ (Raw(key.parent) * 0x9e3779b97f4a7c15);
  }
};

uint32_t Type(const TreeItem& item) { return item.mode & S_IFMT; }

// The id that the name of an orphan's entry says; kNone when it says none.
FileId IdOfOrphanName(std::string_view name) {
  uint64_t id = 0;
  const auto [end, error] = std::from_chars(name.begin(), name.end(), id, 16);
  return name.size() == 16 && error == std::errc() && end == name.end() ? FileId{id} : FileId::kNone;
}

// One inventory by entries and by objects.
class Tree {
 public:
  enum class Side { kOriginal, kCopy };

  Tree(const Inventory& inventory, Side side, std::vector<Difference>& obstacles)
      : side_(side), obstacles_(obstacles) {
    objects.reserve(inventory.size());
    entries.reserve(inventory.size());
    for (size_t at = 0; at < inventory.size(); ++at) {
      const bool empty = at + 1 == inventory.size() || !IsBelow(inventory[at + 1], inventory[at]);
      Add(inventory[at], empty);
    }
  }

  Object* Find(FileId id) {
    const auto at = objects.find(id);
    return at == objects.end() ? nullptr : &at->second;
  }

  std::vector<Entry> entries;   // in the order of the inventory, without the root
  std::vector<Entry> remnants;  // copy: creations that a crash cut
  std::unordered_map<FileId, Object> objects;

 private:
  static bool IsBelow(const TreeItem& item, const TreeItem& directory) {
    return item.path.size() > directory.path.size() && item.path[directory.path.size()] == '/' &&
           item.path.starts_with(directory.path);
  }

  void Obstacle(const TreeItem& item) { obstacles_.push_back({item.path, What::kId, {}}); }

  void Add(const TreeItem& item, bool empty) {
    if (side_ == Side::kOriginal && item.path.starts_with(kOrphansPath)) {
      return;
    }
    if (item.path.empty() && !item.orphan) {
      directories_.emplace(item.path, FileId::kRoot);
      objects[FileId::kRoot] = {.item = &item, .named = true};
      return;
    }
    Entry entry;
    entry.item = &item;
    const size_t slash = item.path.rfind('/');
    entry.name = std::string_view(item.path).substr(slash == std::string::npos ? 0 : slash + 1);
    if (!item.orphan) {
      const auto parent =
          directories_.find(std::string_view(item.path).substr(0, slash == std::string::npos ? 0 : slash));
      entry.parent = parent == directories_.end() ? FileId::kNone : parent->second;
    }
    if (S_ISDIR(item.mode) && !item.path.empty()) {
      directories_.emplace(item.path, item.id);
    }
    if (item.id == FileId::kNone && side_ == Side::kCopy && IsRemnant(entry, empty)) {
      remnants.push_back(entry);
      return;
    }
    // Below an object without an id everything is out of reach.
    if (item.id == FileId::kNone || (entry.parent == FileId::kNone && !item.orphan) || !Note(entry)) {
      Obstacle(item);
    }
  }

  // An object that NamespaceApplier has made and not yet given its id: without permissions (but setgid is
  // inherited) and content. The id is the first attribute it gives.
  bool IsRemnant(const Entry& entry, bool empty) {
    const TreeItem& item = *entry.item;
    const bool bare = S_ISLNK(item.mode) || (item.mode & ACCESSPERMS) == 0;
    if (!bare || !empty || item.size != 0) {
      return false;
    }
    if (!item.orphan) {
      return entry.parent != FileId::kNone;
    }
    const FileId id = IdOfOrphanName(entry.name);
    return id != FileId::kNone && Find(id) == nullptr;  // kForgetOrphan would take the other's id away
  }

  // False: the id is another object's already.
  bool Note(const Entry& entry) {
    const TreeItem& item = *entry.item;
    if (item.orphan && side_ == Side::kCopy && IdOfOrphanName(entry.name) != item.id) {
      return false;
    }
    const auto [at, fresh] = objects.try_emplace(item.id, Object{.item = &item});
    Object& object = at->second;
    if (!fresh && (S_ISDIR(item.mode) || Type(item) != Type(*object.item))) {
      return false;
    }
    (item.orphan ? object.orphan : object.named) = true;
    entries.push_back(entry);
    return true;
  }

  const Side side_;
  std::vector<Difference>& obstacles_;
  std::unordered_map<std::string_view, FileId> directories_;  // by path
};

class Planner {
 public:
  Planner(const Inventory& original, const Inventory& copy)
      : original_(original, Tree::Side::kOriginal, plan_.obstacles),
        copy_(copy, Tree::Side::kCopy, plan_.obstacles) {}

  TreePlan Plan() && {
    if (plan_.obstacles.empty()) {
      RemoveRemnants();
      Match();
      Detach();
      Attach();
      FinishDirectories();
    }
    return std::move(plan_);
  }

 private:
  NamespaceOp& Add(OpKind kind, FileId target) {
    NamespaceOp& op = plan_.operations.emplace_back();
    op.kind = kind;
    op.target = target;
    return op;
  }

  NamespaceOp& AddEntry(OpKind kind, FileId target, const Entry& entry) {
    touched_.insert(entry.parent);
    NamespaceOp& op = Add(kind, target);
    op.parent = entry.parent;
    op.name = entry.name;
    return op;
  }

  static void Describe(const TreeItem& item, NamespaceOp& op) {
    op.mode = item.mode;
    op.uid = item.uid;
    op.gid = item.gid;
    op.rdev = item.rdev;
    op.value = item.target;
  }

  // Only what has an id can be unlinked: a remnant is completed under an id that nobody has, and removed. A
  // crash in between leaves an object that the original does not have.
  void RemoveRemnants() {
    uint64_t id = uint64_t{1} << 63;  // beyond all that mount numbers make
    for (const Entry& remnant : copy_.remnants) {
      if (remnant.item->orphan) {
        Add(OpKind::kForgetOrphan, IdOfOrphanName(remnant.name));
        continue;
      }
      while (copy_.Find(FileId{id}) != nullptr) {
        ++id;
      }
      Describe(*remnant.item, AddEntry(OpKind::kCreate, FileId{id}, remnant));
      AddEntry(S_ISDIR(remnant.item->mode) ? OpKind::kRemoveDirectory : OpKind::kUnlink, FileId{id}, remnant);
      ++id;
    }
  }

  // What an object is and no operation changes.
  static bool SameKind(const TreeItem& a, const TreeItem& b) {
    return Type(a) == Type(b) && a.target == b.target && a.rdev == b.rdev;
  }

  void Match() {
    for (auto& [id, object] : copy_.objects) {
      const Object* const wanted = original_.Find(id);
      object.alive = wanted != nullptr && SameKind(*wanted->item, *object.item);
    }
    std::unordered_map<EntryKey, Entry*, EntryHash> names;
    names.reserve(original_.entries.size());
    for (Entry& entry : original_.entries) {
      if (!entry.item->orphan) {
        names.emplace(EntryKey{entry.parent, entry.name}, &entry);
      }
    }
    for (Entry& entry : copy_.entries) {
      if (entry.item->orphan) {
        continue;
      }
      const auto same = names.find({entry.parent, entry.name});
      Object& object = *copy_.Find(entry.item->id);
      if (same != names.end() && same->second->item->id == entry.item->id && object.alive) {
        entry.kept = same->second->kept = object.kept = true;
      }
    }
  }

  void Detach() {
    for (auto entry = copy_.entries.rbegin(); entry != copy_.entries.rend(); ++entry) {
      const FileId id = entry->item->id;
      Object& object = *copy_.Find(id);
      if (entry->item->orphan) {
        if (!object.alive || object.kept) {
          Add(OpKind::kForgetOrphan, id);
        }
      } else if (entry->kept) {
        continue;
      } else if (object.alive && !object.kept && !object.orphan) {
        AddEntry(OpKind::kUnlink, id, *entry).flags = kOpOrphaned;
        object.orphan = true;
        touched_.insert(id);  // a directory's "..": some file systems take that for a modification
      } else {
        AddEntry(S_ISDIR(entry->item->mode) ? OpKind::kRemoveDirectory : OpKind::kUnlink, id, *entry);
      }
    }
  }

  void Attach() {
    for (const Entry& entry : original_.entries) {
      const FileId id = entry.item->id;
      Object& object = *original_.Find(id);
      const Object* const there = Alive(id);
      if (entry.item->orphan) {
        if (object.named) {
          continue;
        }
        if (there == nullptr) {
          Describe(*entry.item, Add(OpKind::kCreateOrphan, id));
          object.made = true;
        }
      } else if (!entry.kept) {
        if (there != nullptr || object.made) {
          AddEntry(OpKind::kLink, id, entry);
        } else {
          StripDefaultAcl(entry.parent);
          Describe(*entry.item, AddEntry(OpKind::kCreate, id, entry));
          object.made = true;
        }
      }
      if (!S_ISDIR(entry.item->mode)) {
        SetAttributes(object);
      }
    }
  }

  void FinishDirectories() {
    SetAttributes(*original_.Find(FileId::kRoot));
    for (const Entry& entry : original_.entries) {
      if (S_ISDIR(entry.item->mode)) {
        SetAttributes(*original_.Find(entry.item->id));
      }
    }
  }

  // The copy's object of that id, null when there is none, or one of another kind.
  Object* Alive(FileId id) {
    Object* const object = copy_.Find(id);
    return object != nullptr && object->alive ? object : nullptr;
  }

  // What is created in a directory with a default ACL inherits from it, which its original perhaps did not.
  void StripDefaultAcl(FileId directory) {
    const Object* const there = Alive(directory);
    if (there == nullptr) {
      return;  // the plan makes it, and sets its ACL when all is in it
    }
    for (const auto& [name, value] : there->item->xattrs) {
      if (name == kDefaultAcl && stripped_.insert(directory).second) {
        Add(OpKind::kRemoveXattr, directory).name = kDefaultAcl;
      }
    }
  }

  // Owner and size first: changing them takes capabilities away. A change of the owner also takes setuid
  // away, which kSetOwner gives back. The mode after the access ACL: that moves its bits, and is moved by it.
  void SetAttributes(Object& object) {
    if (std::exchange(object.done, true)) {
      return;
    }
    const TreeItem& want = *object.item;
    const Object* const there = object.made ? nullptr : Alive(want.id);
    TreeItem fresh;
    fresh.mode = want.mode;
    fresh.uid = want.uid;
    fresh.gid = want.gid;
    const TreeItem& have = there != nullptr ? *there->item : fresh;
    const bool owner = want.uid != have.uid || want.gid != have.gid;
    const bool size = want.size != have.size;
    if (owner) {
      Describe(want, Add(OpKind::kSetOwner, want.id));
      Last().rdev = 0;
      Last().value.clear();
    }
    if (size) {
      Add(OpKind::kTruncate, want.id).extent.offset = want.size;
    }
    SetXattrs(want, have.xattrs, owner || size);
    if (!S_ISLNK(want.mode) && want.mode != have.mode && !owner) {
      Add(OpKind::kSetMode, want.id).mode = want.mode;
    }
    if (there == nullptr || size || want.mtime != have.mtime || touched_.contains(want.id)) {
      NamespaceOp& op = Add(OpKind::kSetTimes, want.id);
      op.atime = want.atime;
      op.mtime = want.mtime;
    }
  }

  NamespaceOp& Last() { return plan_.operations.back(); }

  // Both lists are in the order of names.
  void SetXattrs(const TreeItem& want, const Xattrs& have, bool capabilities_lost) {
    auto old = have.begin();
    const auto set = [&](const std::string& name, const std::string* value) {
      NamespaceOp& op = Add(value != nullptr ? OpKind::kSetXattr : OpKind::kRemoveXattr, want.id);
      op.name = name;
      op.value = value != nullptr ? *value : "";
    };
    const auto gone = [&](const std::string& name) {
      return (name == kCapability && capabilities_lost) ||
             (name == kDefaultAcl && stripped_.contains(want.id));
    };
    for (const auto& [name, value] : want.xattrs) {
      for (; old != have.end() && old->first < name; ++old) {
        set(old->first, nullptr);
      }
      const bool same = old != have.end() && old->first == name;
      if (!same || old->second != value || gone(name)) {
        set(name, &value);
      }
      old += same ? 1 : 0;
    }
    for (; old != have.end(); ++old) {
      set(old->first, nullptr);
    }
  }

  TreePlan plan_;
  Tree original_;
  Tree copy_;
  std::unordered_set<FileId> touched_;   // whose modification time the plan moves
  std::unordered_set<FileId> stripped_;  // directories whose default ACL the plan has taken away
};

}  // namespace

TreePlan PlanTree(const Inventory& original, const Inventory& copy) { return Planner(original, copy).Plan(); }

}  // namespace pmirror::recovery
