// Requests to the server. Each returns the JSON of the answer, or throws a RequestError with a sentence for the page.

const MAX_UPLOAD_BYTES = 100e6;

const STOPPED =
  "The server has stopped or can't be reached. Start it again in its terminal (python ensemble/search.py DIR --serve), "
  + "then try again.";

export class RequestError extends Error {
  constructor(message, canRetry) {
    super(message);
    this.canRetry = canRetry;
  }
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(STOPPED, true);
  }
  let answer;
  try {
    answer = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RequestError(STOPPED, true);
  }
  if (!response.ok) throw new RequestError(answer.error, response.status >= 500);
  return answer;
}

function describeFilters(query, k) {
  const parameters = new URLSearchParams({ k });
  for (const [name, parameter] of [
    ["corpus", "corpus"], ["folder", "folder"], ["min", "min_duration_s"], ["max", "max_duration_s"],
  ]) {
    if (query[name]) parameters.set(parameter, query[name]);
  }
  return parameters;
}

export function search(query, file, k, signal) {
  const parameters = describeFilters(query, k);
  if (query.sound) {
    if (file.size > MAX_UPLOAD_BYTES) {
      throw new RequestError(`${file.name} has more than 100 MB: cut out the part to search with, and try again.`, false);
    }
    return request(`/api/similar?${parameters}`, { method: "POST", body: file, signal });
  }
  if (query.like) {
    parameters.set("id", query.like);
    return request(`/api/similar?${parameters}`, { signal });
  }
  parameters.set("q", query.q);
  return request(`/api/search?${parameters}`, { signal });
}

export const listFolders = () => request("/api/folders");
export const getRecording = (id) => request(`/api/recordings/${encodeURIComponent(id)}`);
export const readPeaks = (id) => request(`/api/peaks/${encodeURIComponent(id)}`);
export const getAudioAddress = (id) => `/api/audio/${id}`;
export const getDownloadAddress = (id) => `/api/audio/${id}?download=true`;
