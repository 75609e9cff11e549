// Documentation of the JSON interface, from its OpenAPI description.

SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true });
