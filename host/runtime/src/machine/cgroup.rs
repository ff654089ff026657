//! The limits of control groups, versions 1 and 2.
//!
//! The standard library reads CPU quotas but no memory limits, and only if the groups are mounted
//! at the usual place. All files are read below a root path, so that tests can simulate other
//! machines. A missing or malformed file means no limit.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Memory limits from here on mean no limit: version 1 reports the largest number of pages.
const NO_MEMORY_LIMIT: u64 = 1 << 60;

/// The lowest limits of the groups of this process and of their ancestors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CgroupLimits {
    pub(super) memory_bytes: Option<u64>,
    /// Whole processors, at least one: a thread for a fraction of a processor would only be
    /// throttled.
    pub(super) cpus: Option<usize>,
}

impl CgroupLimits {
    /// Read the limits of the calling process, with `root` as the root of the file system.
    pub(super) fn read(root: &Path) -> Self {
        let text = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
        let (groups, mounts) = (text("proc/self/cgroup"), text("proc/self/mountinfo"));
        let mounts: Vec<_> = mounts.lines().filter_map(Mount::parse).collect();
        let mut limits = Self::default();
        for group in groups.lines().filter_map(Group::parse) {
            for folder in group.folders(&mounts) {
                limits.narrow(&group, &root.join(folder.strip_prefix("/").unwrap_or(&folder)));
            }
        }
        limits
    }

    /// Apply the limits of one group.
    fn narrow(&mut self, group: &Group<'_>, folder: &Path) {
        let text = |file| fs::read_to_string(folder.join(file)).unwrap_or_default();
        let (memory, quota) = if group.is_unified() {
            (text("memory.max"), text("cpu.max"))
        } else {
            let quota = format!("{} {}", text("cpu.cfs_quota_us"), text("cpu.cfs_period_us"));
            (text("memory.limit_in_bytes"), quota)
        };
        let memory = memory.trim().parse().ok().filter(|bytes| *bytes < NO_MEMORY_LIMIT);
        self.memory_bytes = least(self.memory_bytes, memory);
        self.cpus = least(self.cpus, whole_cpus(&quota));
    }
}

fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
    one.into_iter().chain(other).min()
}

/// The whole processors of a quota and a period in microseconds; a quota of `max` or -1 means none.
fn whole_cpus(quota: &str) -> Option<usize> {
    let (quota, period) = quota.trim().split_once(char::is_whitespace)?;
    let (quota, period) = (quota.parse::<usize>().ok()?, period.trim().parse::<usize>().ok()?);
    quota.checked_div(period).map(|cpus| cpus.max(1))
}

/// The group of the process in one hierarchy: a line of `/proc/self/cgroup`.
struct Group<'a> {
    /// The controllers of the hierarchy; empty in version 2.
    controllers: Vec<&'a str>,
    path: &'a Path,
}

impl<'a> Group<'a> {
    /// Parse `4:memory:/a/b`, or `0::/a/b` in version 2.
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, Path::new(parts.next()?));
        let controllers = controllers.split(',').filter(|name| !name.is_empty()).collect();
        Some(Self { controllers, path })
    }

    fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// The folders of the group and of its ancestors, as far as they are visible.
    fn folders(&self, mounts: &[Mount]) -> Vec<PathBuf> {
        let mounts: Vec<_> = mounts.iter().filter(|mount| mount.is_of(self)).collect();
        let below = |mount: &&Mount| {
            let path = self.path.strip_prefix(&mount.root).ok()?.to_owned();
            let climbs = path.components().any(|part| part == Component::ParentDir);
            (!climbs).then(|| (mount.point.clone(), path))
        };
        // In a container that sees its groups under other names, the mount point is the group
        // itself.
        let itself = || mounts.first().map(|mount| (mount.point.clone(), PathBuf::new()));
        let Some((point, path)) = mounts.iter().find_map(below).or_else(itself) else {
            return Vec::new();
        };
        path.ancestors().map(|path| point.join(path)).collect()
    }
}

/// A mounted hierarchy: a line of `/proc/self/mountinfo`.
struct Mount {
    is_unified: bool,
    /// The options of the file system, which list the controllers in version 1.
    options: Vec<String>,
    /// The group that is visible at the mount point.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Parse `35 31 0:32 root point rw - cgroup cgroup rw,memory`, with any number of words before
    /// the dash.
    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3).map(|path| PathBuf::from(unescape(path)));
        let (root, point) = (mount.next()?, mount.next()?);
        let mut file_system = file_system.split(' ');
        let is_unified = match file_system.next()? {
            "cgroup2" => true,
            "cgroup" => false,
            _ => return None,
        };
        let options = file_system.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Self { is_unified, options, root, point })
    }

    fn is_of(&self, group: &Group<'_>) -> bool {
        let controls = |name: &&str| self.options.iter().any(|option| option == name);
        self.is_unified == group.is_unified() && group.controllers.iter().all(controls)
    }
}

/// Decode spaces, tabs, line breaks and backslashes, which the kernel writes as three octal digits.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (escape, letter)| text.replace(escape, letter))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
    const MEMORY: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    const CPU: &str = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    /// The limits that are read from these groups, mounts and files.
    fn limits(groups: &str, mounts: &str, files: &[(&str, &str)]) -> CgroupLimits {
        let root = tempfile::tempdir().unwrap();
        let process = [("proc/self/cgroup", groups), ("proc/self/mountinfo", mounts)];
        for (path, text) in process.iter().chain(files) {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        CgroupLimits::read(root.path())
    }

    fn expect(
        memory_bytes: impl Into<Option<u64>>,
        cpus: impl Into<Option<usize>>,
    ) -> CgroupLimits {
        CgroupLimits { memory_bytes: memory_bytes.into(), cpus: cpus.into() }
    }

    #[test]
    fn version_2_uses_the_lowest_limit_of_nested_groups() {
        let group = "sys/fs/cgroup/pod/container/";
        let files = |inner: (&'static str, &'static str), outer: (&'static str, &'static str)| {
            limits(
                "0::/pod/container\n",
                UNIFIED,
                &[
                    (&format!("{group}memory.max"), inner.0),
                    (&format!("{group}cpu.max"), inner.1),
                    ("sys/fs/cgroup/pod/memory.max", outer.0),
                    ("sys/fs/cgroup/pod/cpu.max", outer.1),
                ],
            )
        };
        let none = ("max\n", "max 100000\n");
        assert_eq!(files(none, none), expect(None, None));
        assert_eq!(files(("536870912\n", "400000 100000\n"), none), expect(512 << 20, 4));
        assert_eq!(files(none, ("536870912\n", "400000 100000\n")), expect(512 << 20, 4));
        let inner = ("1073741824\n", "200000 100000\n");
        assert_eq!(files(inner, ("536870912\n", "400000 100000\n")), expect(512 << 20, 2));
        assert_eq!(files(("9223372036854771712\n", "max\n"), none), expect(None, None));
    }

    #[test]
    fn cpu_quotas_are_rounded_down_to_at_least_one() {
        for (quota, cpus) in [
            ("50000 100000", Some(1)),
            ("150000 100000", Some(1)),
            ("250000 100000", Some(2)),
            ("100000 0", None),
            ("-1 100000", None),
            ("max 100000", None),
            ("100000", None),
            ("", None),
        ] {
            assert_eq!(whole_cpus(quota), cpus, "{quota}");
        }
    }

    #[test]
    fn version_1_reads_a_hierarchy_per_controller() {
        let groups = "5:cpu,cpuacct:/a\n4:memory:/a/b\n1:name=systemd:/\n0::/\n";
        let mounts = format!("{CPU}{MEMORY}{UNIFIED}");
        let read = |files: &[(&str, &str)]| limits(groups, &mounts, files);
        let huge = "9223372036854771712\n";
        let none = [
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", huge),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", huge),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(read(&none), expect(None, None));
        let limited = [
            ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "536870912\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n"),
            ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(read(&limited), expect(512 << 20, 3));
    }

    #[test]
    fn a_container_finds_its_group_under_any_outer_name() {
        let file = [("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n")];
        let docker = MEMORY.replace(" / ", " /docker/abc ");
        // The machine's names, with the container's group mounted; and a separate namespace.
        for (group, mount) in [
            ("/docker/abc", docker.as_str()),
            ("/", MEMORY),
            ("/../other", MEMORY),
            ("/elsewhere", &docker),
        ] {
            let read = limits(&format!("4:memory:{group}\n"), mount, &file);
            assert_eq!(read, expect(512 << 20, None), "{group}");
        }
        let unified = [("sys/fs/cgroup/memory.max", "536870912\n")];
        assert_eq!(limits("0::/gone/abc\n", UNIFIED, &unified), expect(512 << 20, None));
        let spaces = MEMORY.replace("/sys/fs/cgroup/memory", "/sys/my\\040groups");
        let file = [("sys/my groups/a/memory.limit_in_bytes", "536870912\n")];
        assert_eq!(limits("4:memory:/a\n", &spaces, &file), expect(512 << 20, None));
    }

    #[test]
    fn a_mount_of_another_group_is_skipped() {
        let other = MEMORY.replace(" / /sys/fs/cgroup", " /other /mnt");
        let files = [
            ("mnt/memory/memory.limit_in_bytes", "1048576\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "536870912\n"),
        ];
        let read = limits("4:memory:/a\n", &format!("{other}{MEMORY}"), &files);
        assert_eq!(read, expect(512 << 20, None));
    }

    #[test]
    fn missing_or_malformed_files_mean_no_limit() {
        assert_eq!(limits("", "", &[]), expect(None, None));
        assert_eq!(
            limits("nonsense\n0:\n", "nonsense - cgroup2\n 1 - \n", &[]),
            expect(None, None)
        );
        let file = [("sys/fs/cgroup/memory.max", "many\n"), ("sys/fs/cgroup/cpu.max", "a b\n")];
        assert_eq!(limits("0::/\n", UNIFIED, &file), expect(None, None));
        assert_eq!(CgroupLimits::read(Path::new("/nowhere")), expect(None, None));
    }
}
