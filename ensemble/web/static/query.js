// Query of the page: a sentence, a recording of the index (`like`) or a dropped sound, and filters. It is in the address.

const TEXT = ["q", "like", "sound", "corpus", "folder"];
const NUMBERS = ["min", "max"];

export const FILTERS = ["corpus", "folder", ...NUMBERS];

export function readQuery() {
  const address = new URLSearchParams(location.search);
  const query = {};
  for (const name of TEXT) {
    if (address.has(name)) query[name] = address.get(name);
  }
  for (const name of NUMBERS) {
    const value = address.get(name);
    if (value && Number.isFinite(Number(value)) && Number(value) >= 0) query[name] = value;
  }
  return query;
}

export function writeQuery(query, isNewEntry) {
  const address = new URLSearchParams();
  for (const name of [...TEXT, ...NUMBERS]) {
    if (isSet(query, name)) address.set(name, query[name]);
  }
  const text = address.toString();
  const target = text ? `?${text}` : location.pathname;
  if (target === (location.search || location.pathname)) return;
  history[isNewEntry ? "pushState" : "replaceState"](null, "", target);
}

// The folder '' of a corpus is the added folder itself, with all its subfolders: no condition.
export function isSet(query, name) {
  return query[name] !== undefined && query[name] !== "";
}

export function hasFilters(query) {
  return FILTERS.some((name) => isSet(query, name));
}
