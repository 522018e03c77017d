const state = document.getElementById("state");
const events = new EventSource("/events");
events.addEventListener("now", (event) => {
  const now = JSON.parse(event.data);
  state.textContent = `${now.state}: ${now.clients.connected} clients`;
});
events.onerror = () => {
  state.textContent = "Connection lost; trying again.";
};
